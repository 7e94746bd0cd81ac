"""What compiler and device share: manifest, digests, safe files, delta decoding. Only numpy and the standard library at run
time."""
