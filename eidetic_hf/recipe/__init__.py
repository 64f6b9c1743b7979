"""Recipes: whole runs from a YAML file, and the command line's answers and reports."""
