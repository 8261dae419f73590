"""One run of training: its steps, ranks, optimizer, records and report, and going on with it after it was stopped."""
