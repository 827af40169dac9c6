// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The control requests of the test device: standard requests, and gadget zero's two vendor
/// requests.
struct ControlRequests {
    /// `bRequest` of gadget zero's vendor requests.
    private enum VendorRequest {
        /// Stores the data of the transfer in the device.
        static let store: UInt8 = 0x5b
        /// Returns the stored data.
        static let load: UInt8 = 0x5c
    }

    private var controlPipe: DefaultControlPipe
    /// The data of the last store request.
    private var stored: [UInt8] = []

    init(_ description: DeviceDescription) { controlPipe = DefaultControlPipe(description) }

    mutating func reset() {
        controlPipe.reset()
        stored = []
    }

    // MARK: - State

    var isLoopback: Bool { controlPipe.configuration == LoopbackDescriptors.loopback }

    /// Whether the selected configuration and alternate setting have the endpoint.
    func has(_ pipe: Pipe) -> Bool {
        switch pipe {
        case .control: true
        case .bulkIn, .bulkOut: controlPipe.configuration != 0
        default:
            controlPipe.configuration == LoopbackDescriptors.sourceSink
                && controlPipe.alternateSetting(ofInterface: 0) == 1
        }
    }

    func isHalted(_ pipe: Pipe) -> Bool { pipe.canHalt && controlPipe.isHalted(pipe.address) }

    mutating func halt(_ pipe: Pipe) { controlPipe.halt(pipe.address) }

    // MARK: - Requests

    /// Returns the requested descriptor, if faults can apply to it.
    func descriptor(
        for setup: SetupPacket
    ) -> (subject: DescriptorFault.Subject, bytes: [UInt8])? {
        guard let requested = setup.requestedDescriptor,
            let subject = DescriptorFault.Subject(requested.type),
            let bytes = controlPipe.description.descriptor(
                requested.type, index: requested.index)
        else { return nil }
        return (subject, bytes)
    }

    /// Executes a request and returns its completion.
    mutating func handle(
        _ transfer: Transfer, _ setup: SetupPacket
    ) -> (completion: Transfer.Completion, change: DefaultControlPipe.Change?) {
        switch controlPipe.handle(transfer, setup) {
        case .answered(let completion, let change): (completion, change)
        case .forDevice: (handleVendor(transfer, setup), nil)
        }
    }

    private mutating func handleVendor(
        _ transfer: Transfer, _ setup: SetupPacket
    ) -> Transfer.Completion {
        guard setup.kind == .vendor, setup.recipient == .device, setup.value == 0,
            setup.index == 0
        else { return transfer.completion(.stalled) }
        switch (setup.request, setup.direction) {
        case (VendorRequest.store, .out):
            stored = transfer.buffer.bytes()
            return transfer.completion(.completed, transferred: stored.count)
        case (VendorRequest.load, .in):
            return transfer.completion(sending: stored, for: setup)
        default:
            return transfer.completion(.stalled)
        }
    }

    /// Inverts a byte of the stored data, if there is one at the offset.
    mutating func invertStored(_ offset: Int) {
        if stored.indices.contains(offset) { stored[offset] = ~stored[offset] }
    }
}
