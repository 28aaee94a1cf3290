"""What depends on the clone: the parts of the package, and README for a package index.

`scripts/` and `configs/` are installed as parts of the package; see pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The project's address, once it has one: https://HOST/OWNER/svag-tf. README's links to
# files lead there; without it a package index shows them as plain text.
URL = ""

INSTALLED_AS = {
    "svag_tf.experiments.commands": "scripts",
    "svag_tf.experiments.configs": "configs",
}


def readme(url: str) -> str:
    """README with links that work anywhere: a package index has no files beside it."""
    text = Path(__file__).with_name("README.md").read_text("utf-8")
    files = r"\]\((?!https?:)([^)]+)\)"
    if url:
        text = re.sub(r"(!\[[^\]]*)" + files, rf"\1]({url}/raw/main/\2)", text)
        return re.sub(files, rf"]({url}/blob/main/\1)", text)
    text = re.sub(r"!\[[^\]]*" + files + r"\n\n", "", text)
    return re.sub(r"\[([^\]]*)" + files, r"\1", text)


setup(
    packages=[*find_packages(include=["svag_tf", "svag_tf.*"]), *INSTALLED_AS],
    package_dir=INSTALLED_AS,
    long_description=readme(URL),
    long_description_content_type="text/markdown",
    project_urls={"Source": URL} if URL else {},
)
