//! Helpers of the workspace-wide suites in `tests/tests`.
