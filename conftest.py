"""The code on the pages runs as tests; each page shares one namespace from top to bottom."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

PAGES = ["README.md", "RECIPES.md"]

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=PAGES).pytest()
