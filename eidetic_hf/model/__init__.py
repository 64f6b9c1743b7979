"""The model: how it learns, answers, routes, writes and is kept."""
