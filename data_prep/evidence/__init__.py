"""What ``make evidence`` trains on and with: drawn pages with small print, real photographs, a real language model."""
