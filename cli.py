import sys
from commands.train import run
def main(args=None):
    run(sys.argv[1:] if args is None else args)
if __name__ == "__main__": main()
