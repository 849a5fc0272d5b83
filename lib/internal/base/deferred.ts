/** A promise with its two ends. Nobody has to be waiting for it when it rejects. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (reason: unknown) => void;

  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // A failure that nobody asked about must not end the process.
    this.promise.catch(() => {});
  }
}
