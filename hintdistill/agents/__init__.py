"""What an agent asks: which step went wrong, and which hint would have prevented it."""
