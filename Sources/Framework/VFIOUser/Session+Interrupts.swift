// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// DEVICE_SET_IRQS: eventfds, masks and triggers of interrupts.
///
/// Specification: the protocol document's section "VFIO_USER_DEVICE_SET_IRQS".
extension Session {
    func setInterrupts(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        do throws(Errno) {
            guard let request = SetIRQsRequest(payload) else { throw .invalidArgument }
            try execute(
                request, payload.extracting(SetIRQsRequest.size..<payload.count), &descriptors)
            start(header, into: reply)
        } catch {
            fail(header, error, into: reply)
        }
    }

    private func execute(
        _ request: SetIRQsRequest, _ data: Span<UInt8>, _ descriptors: inout DescriptorList
    ) throws(Errno) {
        guard request.index < interrupts.count else { throw .invalidArgument }
        let type = interrupts[request.index]
        let action: InterruptAction
        switch request.flags.intersection(.anyAction) {
        case .actionMask: action = .mask
        case .actionUnmask: action = .unmask
        case .actionTrigger: action = .trigger
        default: throw .invalidArgument
        }
        let dataType = request.flags.intersection(.anyData)
        guard request.flags.subtracting([.anyAction, .anyData]).isEmpty,
            dataType == .dataEventFD || descriptors.isEmpty
        else { throw .invalidArgument }

        if request.count == 0 {
            // A count of 0 disconnects all vectors. No other request may have it.
            guard dataType == .dataNone, action == .trigger, request.start == 0 else {
                throw .invalidArgument
            }
            for vector in 0..<type.count {
                device.setInterrupt(request.index, vector: vector, to: nil)
            }
            return
        }
        // Both are numbers of 32 bits, so the sum does not overflow.
        guard request.start + request.count <= type.count else { throw .invalidArgument }
        if action != .trigger, !type.flags.contains(.maskable) { throw .notSupported }

        switch dataType {
        case .dataNone:
            for vector in request.start..<request.start + request.count {
                device.changeInterrupt(request.index, vector: vector, action)
            }
        case .dataBool:
            guard data.count >= request.count else { throw .invalidArgument }
            for index in 0..<request.count where data[index] != 0 {
                device.changeInterrupt(request.index, vector: request.start + index, action)
            }
        case .dataEventFD:
            // Eventfds that mask and unmask are not supported.
            guard action == .trigger else { throw .notSupported }
            // A request without descriptors disconnects the vectors.
            guard descriptors.isEmpty || descriptors.count == request.count else {
                throw .invalidArgument
            }
            for index in 0..<request.count {
                device.setInterrupt(
                    request.index, vector: request.start + index, to: descriptors.take(index))
            }
        default: throw .invalidArgument
        }
    }
}
