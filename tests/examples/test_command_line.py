"""Commands that the tests run may show other libraries' warnings but none about our code."""

import pytest
from command_line import REPOSITORY, call_command, run_command

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


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit()",
        "sys.exit(7)",
        "sys.exit('no such thing')",
        "raise ValueError('of the program')",
        "assert Path('beside').exists()",
    ],
)
def test_a_command_called_in_this_process_ends_and_tells_as_one_of_its_own(tmp_path, end):
    script, folder = tmp_path / "script.py", tmp_path / "folder"
    folder.mkdir()
    (folder / "beside").touch()
    told = "print(sys.argv[1:], __name__, Path.cwd()); print('told', file=sys.stderr)"
    script.write_text(f"import sys\nfrom pathlib import Path\n{told}\n{end}\n")

    own, called = (run(script, 1, "b", folder=folder) for run in (run_command, call_command))

    assert called.returncode == own.returncode
    assert called.stdout == own.stdout
    assert called.stderr.splitlines()[0] == own.stderr.splitlines()[0] == "told"
    assert called.stderr.splitlines()[-1] == own.stderr.splitlines()[-1]
