"""The Dagster instance of the commands: one file, found in a checkout and in an installed wheel."""

import os
import shutil
from pathlib import Path

from llm_trace_pipeline.settings import Settings

_PACKAGE = Path(__file__).parents[1]
# The wheel carries dagster.yaml and workspace.yaml inside the package, a checkout beside it.
_FILES = next(
    folder
    for folder in (_PACKAGE / "instance", _PACKAGE.parent)
    if (folder / "dagster.yaml").is_file()
)
WORKSPACE = _FILES / "workspace.yaml"
IS_CHECKOUT = _PACKAGE.parent == _FILES


def use_instance(settings: Settings) -> None:
    """Set the variables by which Dagster finds its instance, here and in processes started here.

    Dagster's home is the folder that the user names in ``DAGSTER_HOME``, else the state folder. It
    gets a copy of the instance's file, beside which Dagster keeps its records. A folder of the
    user's that holds anything already is an instance of the user's, and stays as it is.
    """
    os.environ["LLM_TRACES_STATE"] = str(settings.state_dir)
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named or settings.state_dir).absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not named or not any(home.iterdir()):
        # Renamed into place: another process may be reading the one that is there.
        new = home / f"dagster.yaml.{os.getpid()}"
        shutil.copyfile(_FILES / "dagster.yaml", new)
        new.replace(home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
