"""What people do with a trained model: arrays in, arrays out."""
