"""The visual refiner, what it sees, and the files it writes."""
