"""FID and FD-DINOv2 of pictures, of a network's samples, and of averages of every length."""
