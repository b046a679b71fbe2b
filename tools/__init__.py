"""Commands for the people who make minprefix; README.md lists them. They are not in the wheel."""
