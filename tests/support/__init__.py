"""What the tests share: models, data, runners and hostile inputs."""
