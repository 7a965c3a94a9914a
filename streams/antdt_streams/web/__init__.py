"""The live page: a job, or all jobs of a broker, in a browser. Shows what `views` know; owns no number of its own."""
