#!/usr/bin/env python3
"""Stands in for the compiling process: answers each job with the job, sleeps or dies if told."""

import json
import sys
import time

for line in sys.stdin:
    job = json.loads(line)
    if job.get("die"):
        sys.stderr.write("out of registers\n")
        sys.exit(7)
    time.sleep(job.get("sleep", 0))
    sys.stdout.write(json.dumps(job) + "\n")
    sys.stdout.flush()
