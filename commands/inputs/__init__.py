"""What `predict` and `serve` read: recordings, their speech, and images, of any kind."""
