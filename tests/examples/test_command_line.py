"""Commands that the tests run may show other libraries' warnings but none about our code."""

import pytest
from command_line import REPOSITORY, run_command

WARN = "import sys, warnings; warnings.warn_explicit('mend this', UserWarning, sys.argv[1], 1)"


@pytest.mark.parametrize(
    "file", [REPOSITORY / "examples" / "vqa" / "fit.py", "/anywhere/torch/optim/lr_scheduler.py"]
)
def test_a_warning_at_our_code_or_at_torchs_public_modules_is_an_error(file):
    with pytest.raises(AssertionError, match="UserWarning: mend this"):
        run_command("-c", WARN, file)


@pytest.mark.parametrize("file", ["/anywhere/torch/_dynamo/guards.py", "/anywhere/numpy/linalg.py"])
def test_a_warning_at_another_library_is_shown(file):
    assert "UserWarning: mend this" in run_command("-c", WARN, file).stderr
