"""The demonstration: ``postcommit demo``."""
