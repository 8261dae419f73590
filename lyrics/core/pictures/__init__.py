"""Images: opening, preparing, drawing."""
