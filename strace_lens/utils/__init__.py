"""What every floor may use: progress, files written whole, values checked."""
