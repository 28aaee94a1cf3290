"""For the site: shows notebooks with the outputs that they hold, as pages.

mkdocs-jupyter would do it too, with scripts from elsewhere and all of Jupyter.
"""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds a page for each notebook, and its figures."""
    for notebook in sorted(Path(config.docs_dir).glob("*.ipynb")):
        parts = []
        for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
            source = "".join(cell["source"])
            code = cell["cell_type"] == "code"
            parts.append(f"```python\n{source}\n```" if code else source)
            for output in cell.get("outputs", []):
                picture = output.get("data", {}).get("image/png")
                if picture:
                    name = f"{notebook.stem}-{len(parts)}.png"
                    content = base64.b64decode(picture)
                    files.append(File.generated(config, name, content=content))
                    parts.append(f"![Output]({name})")
                else:
                    printed = "".join(output.get("text", [])).rstrip()
                    parts.append(f"```text\n{printed}\n```")
        page = f"{notebook.stem}.md"
        parts.append(f'<a href="{notebook.name}" download>This notebook as a file</a>')
        files.append(File.generated(config, page, content="\n\n".join(parts)))
    return files


def on_page_markdown(markdown, **kwargs):
    """Leads links to notebooks to these pages."""
    return markdown.replace(".ipynb)", ".md)")
