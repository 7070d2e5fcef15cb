"""The driver side: settings, the Spark session, the job's steps and its command line. It knows nothing of models."""
