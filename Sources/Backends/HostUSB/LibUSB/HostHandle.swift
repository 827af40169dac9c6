// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The calls that a ``HostDevice`` makes on the opened device of the host, all on the event loop.
///
/// There are two conforming types: ``LibUSBHandle``, and that of the tests, which plays the kernel.
protocol HostHandle: AnyObject {
    /// Receives completions; set before the first transfer.
    var observer: (any HostHandleObserver)? { get set }

    /// Submits a transfer to the kernel, which processes those of each endpoint in order.
    /// Isochronous transfers are collected until the end of the loop's turn.
    func submit(_ transfer: Transfer) -> SubmissionResult

    /// Cancels a transfer; one that has ended already is no error.
    func cancel(_ id: Transfer.ID)

    /// Completes all transfers that have ended, cancelled ones above all, before it returns.
    func reap()

    /// Runs an operation that may block, after all earlier ones.
    func run(
        _ operation: DeviceOperation, completion: @escaping (DeviceOperation.Outcome) -> Void)
}

/// The result of submitting a transfer to the kernel.
enum SubmissionResult: Equatable {
    /// ``HostHandleObserver/transferEnded(_:with:)`` follows.
    case started
    /// The kernel has no memory for the transfer at present (`usbfs_memory_mb`).
    case noMemory
    /// The endpoint does not exist, or its interface is not claimed.
    case refused
    /// The device is disconnected.
    case disconnected
}

/// The receiver of what a ``HostHandle`` reports, on the event loop.
protocol HostHandleObserver: AnyObject {
    /// A started transfer has ended.
    func transferEnded(_ transfer: Transfer, with completion: Transfer.Completion)

    /// The device has been disconnected from the host.
    func deviceDisconnected()

    /// A problem that the operator should know of.
    func report(_ problem: String)
}
