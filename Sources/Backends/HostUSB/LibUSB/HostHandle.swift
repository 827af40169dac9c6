// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The calls that a ``HostDevice`` makes on the opened host device, all on the event loop.
///
/// ``LibUSBHandle`` conforms; so does a type of the tests, in which a test acts as the kernel.
protocol HostHandle: AnyObject {
    /// The receiver of completions; set before the first transfer.
    var observer: (any HostHandleObserver)? { get set }

    /// Submits a transfer to the kernel, which processes those of each endpoint in order.
    /// Isochronous transfers are collected until the end of the loop's turn.
    func submit(_ transfer: Transfer) -> SubmissionResult

    /// Cancels a transfer; has no effect if the transfer has ended.
    func cancel(_ id: Transfer.ID)

    /// Completes all transfers that have ended, in particular cancelled ones, before it returns.
    func reap()

    /// Runs an operation without blocking the loop, after all earlier operations.
    func run(
        _ operation: DeviceOperation, completion: @escaping (DeviceOperation.Outcome) -> Void)
}

/// The result of submitting a transfer to the kernel.
enum SubmissionResult: Equatable {
    /// The kernel has the transfer; ``HostHandleObserver/transferEnded(_:with:)`` follows.
    case started
    /// The kernel has no memory for the transfer at present (`usbfs_memory_mb`).
    case noMemory
    /// The endpoint does not exist, or its interface is not claimed.
    case refused
    /// The device is disconnected.
    case disconnected
}

/// The receiver of a ``HostHandle``'s reports, on the event loop.
protocol HostHandleObserver: AnyObject {
    /// Called when a started transfer has ended.
    func transferEnded(_ transfer: Transfer, with completion: Transfer.Completion)

    /// Called when the device has been disconnected from the host.
    func deviceDisconnected()

    /// Called with a problem that the operator must know of.
    func report(_ problem: String)
}
