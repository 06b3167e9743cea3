"""The Dagster instance of the commands: one file, found in a checkout and in an installed wheel."""

import os
from pathlib import Path

from llm_trace_pipeline.settings import Settings

_PACKAGE = Path(__file__).parents[1]
# The wheel carries dagster.yaml and workspace.yaml inside the package, a checkout beside it.
HOME = next(
    folder
    for folder in (_PACKAGE / "instance", _PACKAGE.parent)
    if (folder / "dagster.yaml").is_file()
)
WORKSPACE = HOME / "workspace.yaml"


def use_instance(settings: Settings) -> None:
    """Set the variables by which Dagster finds its instance, here and in processes started here.

    An instance that the user names in ``DAGSTER_HOME`` stays; else it is the one that comes with
    the package, whose file puts all records into the state folder. Dagster writes nothing into its
    home, and resolves relative paths in its own way: both paths are made absolute.
    """
    os.environ["LLM_TRACES_STATE"] = str(settings.state_dir)
    os.environ["DAGSTER_HOME"] = str(Path(os.environ.get("DAGSTER_HOME") or HOME).absolute())
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
