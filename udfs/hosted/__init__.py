"""Models that a provider hosts: what they are asked, what their answers are. It knows no SDK until one is called."""
