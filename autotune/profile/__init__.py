"""The saved YAML: settings, recipe, what was measured, and where."""
