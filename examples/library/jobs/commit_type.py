"""What kind of change a commit subject announces."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "part": "the parser | the login page | the cache layer | the export module | the API client | the scheduler | the settings dialog"
        " | the search box | the upload handler | the database layer",
        "tail": "in v2 | for Windows | on mobile | for admins | in the backend | (#~~~) | in core | for the release | closes #~~",
    },
    {
        "feature": """
            add dark mode support to {part} {tail}
            implement new filters in {part} {tail}
            introduce an option to configure {part} {tail}
            add a new button to {part} {tail}
            support CSV files in {part} {tail}
            allow users to customize {part} {tail}
            add plugin support to {part} {tail}
            implement notifications in {part} {tail}
            enable two languages in {part} {tail}
            add a new endpoint to {part} {tail}
        """,
        "fix": """
            fix crash in {part} {tail}
            fix wrong value returned by {part} {tail}
            resolve bug where {part} freezes {tail}
            correct broken validation in {part} {tail}
            handle missing data error in {part} {tail}
            prevent race condition in {part} {tail}
            fix bug with empty input in {part} {tail}
            repair failing redirect of {part} {tail}
            patch security hole in {part} {tail}
            avoid exception when {part} is closed {tail}
        """,
        "docs": """
            update README section about {part} {tail}
            document the usage of {part} {tail}
            fix typo in documentation of {part} {tail}
            add docstrings to {part} {tail}
            write a guide for {part} {tail}
            improve comments and docs of {part} {tail}
            add changelog entry for {part} {tail}
            explain how {part} works in the manual {tail}
            add documentation examples for {part} {tail}
            clarify README instructions for {part} {tail}
        """,
        "test": """
            add unit tests for {part} {tail}
            increase test coverage of {part} {tail}
            add regression test for {part} {tail}
            mock network calls in tests of {part} {tail}
            fix flaky test of {part} {tail}
            add integration tests covering {part} {tail}
            test edge cases of {part} {tail}
            add test fixtures for {part} {tail}
            assert error codes in test suite of {part} {tail}
            cover {part} with end-to-end tests {tail}
        """,
        "performance": """
            speed up {part} {tail}
            reduce memory usage of {part} {tail}
            optimize queries in {part} {tail}
            make {part} twice as fast {tail}
            cache results to accelerate {part} {tail}
            lower latency of {part} {tail}
            improve performance of {part} {tail}
            avoid slow copies in {part}, faster now {tail}
            optimize hot loop in {part} {tail}
            cut startup time of {part} {tail}
        """,
    },
)

_TEST = half(
    {
        "piece": "the router | the payment form | the image viewer | the session store | the message queue | the report builder",
        "end": "on Linux | for guests | (#~~~~) | in the frontend | for beta",
    },
    {
        "feature": """
            add support for tags in {piece} {end}
            implement a new menu for {piece} {end}
            introduce new theme option in {piece} {end}
            allow users to share {piece} {end}
            enable and add custom shortcuts to {piece} {end}
        """,
        "fix": """
            fix bug that breaks {piece} {end}
            fix error when {piece} is empty {end}
            resolve crash on start of {piece} {end}
            correct wrong dates in {piece} {end}
            prevent crash caused by {piece} {end}
        """,
        "docs": """
            document {piece} in README {end}
            update documentation for {piece} {end}
            fix spelling in docs of {piece} {end}
            write docs and usage guide on {piece} {end}
            add comments and docstrings explaining {piece} {end}
        """,
        "test": """
            add tests covering {piece} {end}
            improve unit test coverage for {piece} {end}
            write integration test for {piece} {end}
            add missing unit test cases to {piece} {end}
            stabilize flaky tests around {piece} {end}
        """,
        "performance": """
            make {piece} faster {end}
            optimize speed of {piece} {end}
            reduce latency and memory of {piece} {end}
            speed up slow loading in {piece} {end}
            improve performance by caching {piece} {end}
        """,
    },
)

JOB = make_job(
    name="commit_type",
    domain="code",
    specialization="task",
    tags=("code", "git", "commit"),
    description="Names the kind of change a commit subject announces.",
    table=ByLabel(_TRAIN, _TEST),
)
