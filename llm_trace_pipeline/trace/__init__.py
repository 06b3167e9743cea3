"""The row of a call, computed without input and output: Arrow in, Arrow out.

``rows`` turns rows of the source into rows of ``llm_traces``, whose columns ``columns`` declares.
``fast_responses``, ``responses``, ``usage`` and ``context`` read the JSON of a trace; ``billing``
finds who pays; ``prices`` and ``costs`` say how much; ``payloads`` decides which text is kept.
``tally`` and ``hashes`` compute the figures by which stores are compared.
"""
