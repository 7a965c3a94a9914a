"""What would keep a job from running on this machine and this broker, found before it is started."""
