"""Making the monitor's facts scrapeable."""
