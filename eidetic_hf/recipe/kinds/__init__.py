"""What a recipe says, prepares, scores and asks of each kind of task."""
