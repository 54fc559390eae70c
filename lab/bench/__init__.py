"""Speed, memory, costs: measured side by side, and in closed form."""
