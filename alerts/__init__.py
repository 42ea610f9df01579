"""Telling people: failures leave users' workers through a durable queue, and the alerter takes them to Slack."""
