"""Spark itself: Java, the session, engines that start early, signals; it knows no job's tables."""
