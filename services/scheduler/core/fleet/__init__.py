"""What the scheduler believes: jobs, nodes, the queue, and the numbers that placement looks at."""
