"""Science of a tenth of a second, run as a job's process: it returns its configuration."""

from __future__ import annotations

import sys

from pipelines import job

if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], work=lambda _directory, config: config))
