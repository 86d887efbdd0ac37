"""Small complete trainings that are healthy, as different as people write them: does training health stay silent?"""
