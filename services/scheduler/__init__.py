"""The one writer of job state: decides where and whether a job runs."""
