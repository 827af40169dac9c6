// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The operations on a ``HostDevice``, one of which runs at a time, and the endpoints that they
/// block.
struct OperationQueue {
    private struct Current {
        let operation: DeviceOperation
        /// The control transfer that asked for the operation, until it is completed.
        var request: Transfer?
        var isStarted = false
    }

    private var current: Current?
    private var hasReset = false
    /// Queued stream changes, at most one for each endpoint.
    private var streamChanges: [(endpoint: EndpointAddress, count: Int)] = []

    var isEmpty: Bool { current == nil && !hasReset && streamChanges.isEmpty }

    /// Whether the transfers of an endpoint wait for an operation.
    ///
    /// - Parameter index: see ``USB/EndpointAddress/index``.
    func blocks(_ index: Int) -> Bool {
        if hasReset || streamChanges.contains(where: { $0.endpoint.index == index }) {
            return true
        }
        switch current?.operation {
        case nil: return false
        case .allocateStreams(let endpoint, _), .freeStreams(let endpoint):
            // A control request may be an operation itself, and one runs at a time.
            return index == 0 || index == endpoint.index
        case .clearHalt, .setConfiguration, .setInterface, .reset:
            // Even for an operation on one endpoint, the kernel locks the device until it has
            // answered, which may take seconds. A submission would block the loop meanwhile. So
            // would a cancellation, which nevertheless cannot wait.
            return true
        }
    }

    /// Makes the operation of a control request current. No other operation may be current.
    mutating func begin(_ operation: DeviceOperation, for request: Transfer) {
        current = Current(operation: operation, request: request)
    }

    /// Queues a reset. It frees all streams, so queued stream changes are removed.
    mutating func addReset() {
        streamChanges = []
        hasReset = true
    }

    mutating func addStreamChange(to count: Int, for endpoint: EndpointAddress) {
        streamChanges.removeAll { $0.endpoint == endpoint }
        streamChanges.append((endpoint, count))
    }

    /// Removes the operations that are not current.
    mutating func removeQueued() {
        streamChanges = []
        hasReset = false
    }

    /// Makes the next operation current if there is none.
    ///
    /// - Returns: the current operation; `nil` if there is none or it has been started.
    mutating func next() -> DeviceOperation? {
        if current == nil && hasReset {
            hasReset = false
            current = Current(operation: .reset)
        }
        if current == nil, !streamChanges.isEmpty {
            let change = streamChanges.removeFirst()
            current = Current(
                operation: change.count > 0
                    ? .allocateStreams(change.endpoint, count: change.count)
                    : .freeStreams(change.endpoint))
        }
        return current?.isStarted == false ? current?.operation : nil
    }

    mutating func startCurrent() { current?.isStarted = true }

    /// Removes the current operation and returns it.
    mutating func endCurrent() -> (operation: DeviceOperation, request: Transfer?)? {
        guard let ended = current.take() else { return nil }
        return (ended.operation, ended.request)
    }

    func isRequest(_ id: Transfer.ID) -> Bool { current?.request?.id == id }

    /// Removes and returns the request of the current operation. Removes the operation as well
    /// unless it has been started.
    mutating func takeRequest() -> Transfer? {
        guard let request = current?.request else { return nil }
        current?.request = nil
        if current?.isStarted == false { current = nil }
        return request
    }
}
