"""What pyproject.toml cannot say: a wheel gets copies of the project's presets and notebooks."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"params": "**/*.yaml", "notebooks": "*.ipynb"}


class BuildWithShippedFiles(build_py):
    """Copies the files to `talkinghead_lab/shipped/`; an editable installation reads them in the checkout."""

    def run(self) -> None:
        """Build the package, then add the files."""
        super().run()
        if not self.editable_mode:
            for folder, pattern in SHIPPED.items():
                shipped = Path(self.build_lib) / "talkinghead_lab" / "shipped"
                for file in sorted(Path(folder).glob(pattern)):
                    (shipped / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, shipped / file)


setup(cmdclass={"build_py": BuildWithShippedFiles})
