"""The output's layout: whose it is, its lock, its commit marks and sums; it reads no input and scores nothing."""
