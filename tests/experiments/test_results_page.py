"""The committed pages of comparisons say what the committed files do."""

import re

import pytest
import results_page
from conftest import ROOT

FOLDERS = [
    path.parent
    for path in sorted((ROOT / "docs" / "results").rglob("results.csv"))
    if path.read_text("utf-8").startswith("rank,optimizer,seed,")
]

# Computed by hand; t of one degree of freedom is 12.7062.
PAGE = """\
| rank | optimizer | learning rate | test accuracy, % | test loss | steps to 75.00 % |
| ---: | --- | ---: | ---: | ---: | ---: |
| 1 | M-SGD | 0.1 | 60.00 ± 10.00 | 2.0000 ± 1.0000 | 15 ± 7 (2 of 3) |
| 2 | M-SVAG (1 of 3 diverged) | 0.631 | 85.00 ± 7.07 | 0.5000 ± 0.0000 | never |

| aspect | with it | without | test accuracy, %: at the end | seeds |
| --- | --- | --- | ---: | ---: |
| variance adaptation | M-SVAG | M-SGD | +30.00 [-97.06, +157.06] | 2 (1 left out) |

| optimizer | tried | stopped as hopeless | diverged | failed | best learning rate |
| --- | ---: | ---: | ---: | ---: | ---: |
| M-SGD | 2 | 1 | 0 | 0 | 0.1 |
| M-SVAG | 3 | 0 | 1 | 1 | 0.631 |
"""
RESULTS = """\
rank,optimizer,seed,learning_rate,ended,test_accuracy,test_loss,steps_to_target
1,msgd,0,0.1,completed,0.5,1.0,10
1,msgd,1,0.1,completed,0.6,2.0,20
1,msgd,2,0.1,completed,0.7,3.0,
2,msvag,0,0.63095737,completed,0.9,0.5,
2,msvag,1,0.63095737,completed,0.8,0.5,
2,msvag,2,0.63095737,diverged,0.1,nan,
"""
TUNING = """\
optimizer,stage,learning_rate,best,ended
msgd,scouting,0.01,True,completed
msgd,tuning,0.1,True,completed
msgd,tuning,1.0,False,stopped
msvag,tuning,0.63095737,True,completed
msvag,tuning,1.0,False,diverged
msvag,tuning,10.0,False,failed
"""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_are_those_of_the_files(folder):
    results_page.check(folder)


def test_every_number_that_differs_is_found(tmp_path):
    (tmp_path / "results.csv").write_text(RESULTS)
    (tmp_path / "tuning.csv").write_text(TUNING)
    page = tmp_path / "results.md"
    page.write_text(PAGE, "utf-8")
    results_page.check(tmp_path)
    start = PAGE.index("| 1 |")  # The heading names the target, which no file has.
    digits = [start + m.start() for m in re.finditer(r"\d(?![\d.])", PAGE[start:])]
    assert len(digits) == 33
    for i in digits:
        other = (int(PAGE[i]) + 1) % 10
        page.write_text(f"{PAGE[:i]}{other}{PAGE[i + 1 :]}", "utf-8")
        with pytest.raises(AssertionError):
            results_page.check(tmp_path)
            pytest.fail(f"{PAGE[: i + 1]} -> {other}", pytrace=False)
