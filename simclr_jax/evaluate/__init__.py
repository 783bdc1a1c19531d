"""What an encoder learned: kNN, linear, fine-tuned and transferred classifiers, features, search."""
