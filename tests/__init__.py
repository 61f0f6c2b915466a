"""Tests of postcommit."""
