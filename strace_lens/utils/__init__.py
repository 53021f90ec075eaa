"""What every layer may use: files on disk, checks of values, progress, versions."""
