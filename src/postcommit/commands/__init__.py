"""The commands of ``postcommit``: for each a module with `arguments` and `run`."""
